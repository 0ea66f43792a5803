"""What a person looks at: sheets of augmented images, figures and tables of a study."""
